"""CSV files from a folder, an SFTP server or an object store as a source: what nearly every shop system can write."""
