"""One file a `spark-submit` entry point: parse, open a session, call, exit code. Nobody imports this room."""
