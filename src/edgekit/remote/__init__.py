"""Work on another machine, with nothing left there: over SSH, or in a root that is emulated here.

```
hosts       an address → a machine that OpenSSH reaches
wheels      the runtime that is installed here → a wheel
over_ssh    a job on such a machine → what came of it
session     the same behind any command; speaks with the supervisor at the other end
supervisor  is sent over the line: makes a folder, runs one command in it, removes the folder
refusals    what went wrong → an error that says the way out
```
"""
