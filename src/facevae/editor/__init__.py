"""The face editor: one HTML file that decodes, edits and encodes faces in a browser."""
