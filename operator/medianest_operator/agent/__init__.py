"""`medianest-dbctl`: what runs inside the pods and Jobs."""
