"""Watch coalescing: many clients' watches share few upstream ones."""
