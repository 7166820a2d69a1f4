"""What controller and worker say to each other and to clients: errors, chat schema, registration. Pure Python."""
