"""Which worker answers: a policy chooses among the workers that may."""
