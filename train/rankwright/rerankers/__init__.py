"""Everything that scores pairs: ours, other cross-encoders, servers. Imports the rooms from common to retrieval."""
