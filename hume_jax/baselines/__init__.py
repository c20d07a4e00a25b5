"""What a reader compares with: a floor without labels, a ceiling with them."""
