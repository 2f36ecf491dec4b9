"""Files and folders through Hadoop, and Parquet files of any writer."""
