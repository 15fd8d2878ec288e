"""The console for staff: pages in a browser, on a phone at the shelf too, over what the buffer knows. No build step."""
