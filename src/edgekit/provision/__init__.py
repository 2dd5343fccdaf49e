"""`edgekit devices provision`: the runtime, its agent and an enrolment, on a device that SSH reaches.

```
plan      what is there and what is wanted → steps; decides, and does nothing
carry_out looks at the device, makes the plan, does it
command   options of the command line
```

What is done on the device is in `edgekit_devices/provision`: `install.sh`, which anybody may run by hand, too.
"""
