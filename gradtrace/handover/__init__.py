"""What crosses from the training thread to the background thread, and how."""
