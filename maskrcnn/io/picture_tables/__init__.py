"""Pictures inside Parquet tables: a column of bytes, of which workers read the row groups that they need."""
