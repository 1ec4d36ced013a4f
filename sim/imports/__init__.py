"""What other tools leave behind, read into our names and units: benchmark results and a server's start-up log."""
