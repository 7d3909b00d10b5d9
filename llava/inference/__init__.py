"""What every program that asks a model shares: commands of evaluation, chat, analysis and training."""
