"""`htpfarm watch`: a page on this machine alone that shows a run as it goes. Read only."""
