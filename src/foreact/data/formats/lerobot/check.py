from foreact.data.stores.findings import Finding
def check_set(store)->list[Finding]:
    return []
