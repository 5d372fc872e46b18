"""SAEs from the files of others, one module per source."""
