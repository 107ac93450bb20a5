"""What heads are made of: one module a task, each with its targets, output module, loss, metrics and answers."""
