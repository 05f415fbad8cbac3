module guide.example/main

go 1.19
