package main

import "os"

func main() {
	host, _ := os.Hostname()
	os.Stdout.WriteString("hello from " + host + "\n")
}
