"""URLs, stores and Parquet files."""
