"""`python -m gas_nb.app`: serve the page until interrupted."""

from gas_nb.app.page import main

if __name__ == "__main__":
    main()
