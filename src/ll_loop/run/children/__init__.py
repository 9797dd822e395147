"""Child processes: started, heard, watched, ended with all that they started."""
