"""Loop forms, precision and thresholds: used by all of the library, know none of it."""
