"""How well and how fast training is: against peers, against an earlier commit, and by its parts."""
