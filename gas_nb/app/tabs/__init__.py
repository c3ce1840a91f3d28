"""A chapter for each tab of the page, and the widgets that they share."""
