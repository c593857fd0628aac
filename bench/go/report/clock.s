// Empty: a package with a .s file may declare functions without a body (nanotime in report.go).
