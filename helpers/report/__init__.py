"""What is told: statistics, tables, figures, claims."""
