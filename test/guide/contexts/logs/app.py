with open("/var/log/app/access.log", "a") as access, open("/var/log/app/error.log", "a") as errors:
    print("an access", file=access)
    print("an error", file=errors)
print("done")
