"""What users uploaded: their files, which are blobs with an owner and a type that their content decided."""
