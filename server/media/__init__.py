"""Pictures that requests name: data URLs, guarded fetching, header-only inspection."""
