"""Engines that are programs of their own: started as child processes, watched, asked over HTTP."""
