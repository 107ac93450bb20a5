"""Shows a run in optuna-dashboard, from a copy in memory that nothing done in the browser can change."""
