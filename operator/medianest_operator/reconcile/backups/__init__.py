"""The concerns of backups: when they are taken, what there is of them, and how one comes back."""
