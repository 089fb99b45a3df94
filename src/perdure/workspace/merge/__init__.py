"""Changes on their way from one place to another: applied, joined, pushed."""
