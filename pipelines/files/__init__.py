"""Files and folders through Hadoop, and Parquet files from any writer."""
