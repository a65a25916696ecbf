"""raw_corpus and rejected_rows: from landing files to identified samples."""
