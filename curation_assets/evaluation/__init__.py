"""The evaluation that closes the loop: models fine-tuned on what was chosen, asked what was held out."""
