"""Endings of the video files that evaluations know, alone in a file so that commands read them without torch."""

READ = (".mp4", ".gif", ".webp", ".mkv", ".mov", ".avi", ".webm", ".y4m")
# Videos that are not read; whoever has some is told.
NOT_READ = (".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".ogv")
