from pyannote_prune.cli import main

main()
