"""Files and tables in a folder or an object store: landing areas, the warehouse, parts."""
