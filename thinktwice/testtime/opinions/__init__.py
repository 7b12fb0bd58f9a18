"""The second look at an uncertain row: feature paths, further trunks, or redefined features; one file per kind."""
