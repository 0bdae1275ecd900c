"""What licences permit, and the licence that follows for an exported model; start with terms.py."""
