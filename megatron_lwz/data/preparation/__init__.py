"""Makes prompt rows from conversation data sets: reads requests, tags and deduplicates them, sets length ranges."""
