"""Run exported models with the methods of HFCLIPModel."""
