"""What the pictures show, drawing, and PNG."""
