"""What every complete run shares."""
