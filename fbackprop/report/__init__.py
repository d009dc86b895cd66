"""What a run did, as text and figures. Imports train and below."""
