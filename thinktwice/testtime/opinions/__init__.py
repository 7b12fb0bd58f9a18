"""Second opinions for uncertain rows: feature paths, further trunks, redefined features, retrieval; one file per kind."""
