"""What every entry point uses: config, runner, exit codes, known faults, plots."""
