"""Fine-tune a pretrained CNN on a folder of pictures, and export it as a bundle. Run as `trainer`."""
